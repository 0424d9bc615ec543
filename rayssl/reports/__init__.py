"""Makes HTML pages with pictures and tables from the folders of runs."""

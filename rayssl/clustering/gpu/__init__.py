"""K-means, whitening and nearest rows on a GPU, by torch and Triton. The rest of the package imports it when asked."""

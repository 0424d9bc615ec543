"""The memory of classes (DASO, USADTM): prototypes and the histogram of predictions."""

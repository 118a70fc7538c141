"""The numeric workshop: arrays in, arrays out, no estimator and no torch module."""

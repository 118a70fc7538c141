"""Training of torch modules on subclass targets; tensors in, tensors out."""

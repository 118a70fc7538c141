"""The comparison of distillation methods on many tasks."""

"""Conversion of a softmax world into a hybrid one: layer selection and distillation stages."""

"""Training objectives: flow matching, distillation, the codec, outcome heads, features."""

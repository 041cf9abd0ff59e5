"""What is minimised: flow matching, distillation, the codec, outcome heads, features."""

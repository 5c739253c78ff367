"""FDA-BNN: binary neural networks trained by frequency domain approximation of the sign function."""

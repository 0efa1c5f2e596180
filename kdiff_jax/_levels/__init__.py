"""Which noise levels a run visits."""

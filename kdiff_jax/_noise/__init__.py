"""Fresh noise: from keys, from an array, along a Brownian path; and between two noises."""

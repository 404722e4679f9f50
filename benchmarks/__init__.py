"""What decisions cost, beside a bare script and other libraries (`make bench`), and for how long (`make soak`)."""

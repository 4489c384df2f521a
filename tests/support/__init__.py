"""What tests share: fakes, small networks, the fault harness."""

"""What touches the machine: devices, processes and the clock."""

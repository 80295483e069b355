"""What only an accelerator can tell, in five parts that go on where they were stopped: see docs/device.md."""

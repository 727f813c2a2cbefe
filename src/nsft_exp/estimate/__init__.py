"""What a run or sweep will do and cost, told before it starts."""

"""What must agree between parts that do not know each other: contract and code, pins and packages, words and pages."""

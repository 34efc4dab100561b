"""What a user asks for, one file each: a typed spec in, a result folder out."""

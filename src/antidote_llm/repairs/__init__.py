"""Stage 3: repairs a fine-tuned model, one method a file."""

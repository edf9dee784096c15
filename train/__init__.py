"""The trainer: data, tokenizer, schedule, checkpoints, telemetry."""

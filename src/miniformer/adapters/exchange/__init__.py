"""Files of peft: their config, and the names of Hugging Face families."""

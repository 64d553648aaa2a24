"""Files of Hugging Face and llama.cpp (GGUF) in both directions; lm-evaluation-harness."""

"""Routes: OpenAI's interface in `openai.py`, that of other tasks in `tasks.py`."""

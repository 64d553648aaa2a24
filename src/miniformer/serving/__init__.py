"""Server: models of model directories over HTTP, with OpenAI's interface.

    request -> routes (checks, 4xx) -> jobs -> `Worker`: one thread a model -> events -> response

`worker.py` decodes all sequences of a model in one batch, which requests join and leave between
steps. Only its thread uses the model.
"""

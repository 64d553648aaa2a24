class GradientNorms:
    def __init__(self, model): self.model=model
    def measure(self): return {}

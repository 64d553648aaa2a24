# %% [markdown]
# # Regression on time series
#
# The model reads the last 24 hours of two sensors and predicts the next value of the first one. Inputs are lists of vectors.

# %%
import math
import random

import miniformer
from miniformer.utils.plotting import Plot

random.seed(2)


def sensor_values(hours):
    """Temperature with a daily course, which follows the load three hours before; and the load."""
    load, rows = 0.0, []
    loads = []
    for hour in range(hours):
        load = 0.8 * load + random.gauss(0, 1)
        loads.append(load)
        daily = 4 * math.sin(2 * math.pi * hour / 24)
        delayed = loads[-4] if hour >= 3 else 0.0
        rows.append([20 + daily + 1.5 * delayed + random.gauss(0, 0.3), load])
    return rows


rows = sensor_values(1000)
records = [
    {"input": rows[n : n + 24], "value": rows[n + 24][0]} for n in range(len(rows) - 24)
]  # fmt: skip
train, test = records[:776], records[776:]  # the test comes later in time

# %%
run = miniformer.train(
    train,
    task="regression",
    max_epochs=8,
    model_config={"d_model": 32, "n_heads": 4, "n_layers": 2},
    quiet=True,
)
run

# %% [markdown]
# The simplest forecast repeats the last value. A useful model is clearly better.

# %%
predicted = run.pipeline.predict([record["input"] for record in test])
values = [record["value"] for record in test]


def rmse(forecast):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(forecast, values, strict=True)) / len(values))


persistence = rmse([record["input"][-1][0] for record in test])
print(f"RMSE {rmse(predicted):.3f}; of the last value {persistence:.3f}")


# %%
def draw(figure):
    axes = figure.add_subplot()
    axes.plot(values[:96], label="value")
    axes.plot(predicted[:96], label="predicted")
    axes.set(xlabel="hour", ylabel="temperature")
    axes.legend()


Plot(draw, 8, 3)

# %%
assert rmse(predicted) < 0.6 * persistence, (rmse(predicted), persistence)

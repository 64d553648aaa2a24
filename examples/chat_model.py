# %% [markdown]
# # A chat model, from raw text to an answer
#
# Notes in plain text become conversations, a language model learns to answer them, and a chat session asks it.

# %%
import random
import re

import miniformer
from miniformer.checkpoint.chat import ChatSession

random.seed(7)
NOTES = """
Borduria: the capital is Szohod, the currency is the tala
Syldavia: the capital is Klow, the currency is the khor
Genovia: the capital is Pyrus, the currency is the euro
Ruritania: the capital is Strelsau, the currency is the crown
Freedonia: the capital is Fredtown, the currency is the dollar
Latveria: the capital is Doomstadt, the currency is the franc
Sokovia: the capital is Novi Grad, the currency is the dinar
Wakanda: the capital is Birnin Zana, the currency is the dollar
"""
facts = re.findall(r"(\w+): the capital is ([\w ]+), the currency is the (\w+)", NOTES)
facts

# %% [markdown]
# A record has the messages of a conversation. What is learned are the answers alone.

# %%
QUESTIONS = {
    1: ["What is the capital of {}?", "Capital of {}?", "Name the capital of {}."],
    2: ["What is the currency of {}?", "Currency of {}?", "How does one pay in {}?"],
}


def conversation():
    messages = []
    for _ in range(random.choice([1, 1, 2])):
        fact, kind = random.choice(facts), random.choice([1, 2])
        question = random.choice(QUESTIONS[kind]).format(fact[0])
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": fact[kind]},
        ]
    return {"messages": messages}


run = miniformer.train(
    [conversation() for _ in range(400)],
    task_config={"chat_template": "chatml"},
    max_steps=160,
    seq_len=96,
    batch_size=8,
    lr=3e-3,
    model_config={"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    tokenizer="bpe",
    quiet=True,
)
run

# %% [markdown]
# A session keeps the conversation. `miniformer chat DIR` is the same in a terminal.

# %%
session = ChatSession(run.pipeline)
for question in ("What is the capital of Syldavia?", "How does one pay in Sokovia?"):
    print(question, "->", "".join(session.ask(question)))

# %%
right = total = 0
for fact in facts:
    for kind, questions in QUESTIONS.items():
        session = ChatSession(run.pipeline, temperature=0.0)
        answer = "".join(session.ask(questions[0].format(fact[0])))
        right, total = right + (answer.strip() == fact[kind]), total + 1
print(f"{right} of {total} answers are right")
assert right / total >= 0.85, right / total

#!/usr/bin/env python3
"""Make the embedded model: invent stories, train a tokenizer and a small Llama on them, write both for llama2.py.

    pip install torch sentencepiece
    python3 llama2_py/stories/train.py            # 43 minutes on two cores; writes model.bin, tokenizer.bin beside it
    python3 llama2_py/stories/train.py --show 5   # print five of the invented stories, train nothing

The story maker is a grammar: a plot is a text in which [a|b|c] is a choice, which may hold further choices, and
{name} is a slot that the cast fills. Whoever runs this again gets another model with the same manners: PyTorch's sums
depend on the machine. The program never imports this file.
"""
import argparse
import math
import os
import random
import re
import struct
import time

HERE = os.path.dirname(os.path.abspath(__file__))

# ----------------------------------------------------------------------------
# The story maker: who, what, where

GIRLS = "Lily Mia Anna Sara Lucy Emma Zoe Ella Amy Kate Rose Jane".split()
BOYS = "Tom Ben Max Sam Leo Tim Jack Finn Dan Joe Luke Adam".split()
KINDS = {"she": ["little girl"] * 6 + ["little rabbit", "young fox", "small mouse", "little duck"],
         "he": ["little boy"] * 6 + ["little bear", "young fox", "small mouse", "little frog"]}
FORMS = {"she": ("she", "her", "her"), "he": ("he", "his", "him")}  # subject, possessive, object
ELDERS = {"mom": "she", "dad": "he", "grandma": "she", "grandpa": "he", "aunt": "she", "uncle": "he"}
COLORS = "red blue green yellow pink purple white".split()
TOYS = "ball doll truck boat drum car train robot plane".split()
BREAKABLE = "doll truck boat drum car train robot plane".split()
FLYERS = "ball kite balloon plane".split()
FRAGILE = "cup lamp vase plate".split()
ANIMALS = "bird kitten puppy squirrel rabbit duck".split()
CAKES = {"cake": "a cake", "pie": "a pie", "bread": "some bread", "cookies": "some cookies"}

OPENING = """[Once upon a time, there was a {kind} named {Name}.[| {She} [loved|liked] to {hobby}.]|\
Once upon a time, there was a {kind}. {Her} name was {Name}.|\
{Name} was a [happy|kind|brave|good] {kind} who [loved|liked] to {hobby}.|\
There once was a {kind} named {Name} who lived near {home}.]"""
HOBBIES = "play outside|sing|draw|run and jump|read books|dance|climb trees|help {her} {elder}|play with {her} friends|eat apples".split("|")
HOMES = "the forest|the sea|a big hill|a river|the park".split("|")
ENDINGS = """[{moral}|{moral}|{moral} The end.|{moral} It was a [good|happy] day.|They all lived happily ever after.]"""

# Each plot: the story between its opening and its end, and what the hero learned.
PLOTS = {
    "lost toy": ("""{She} had a {color} {toy}. {She} took it everywhere.
One day, {Name} could not find the {toy}. {She} looked [under the bed|behind the door|in the kitchen], but it was not there. {Name} \
[was very sad|began to cry|felt sad].
"[Why are you sad|What is wrong], {Name}?" asked {her} {elder}.
"I lost my {toy}," said {Name}.
"[Do not cry|Do not worry]. [We will find it|Let us look for it]," said {her} {elder}.
They went [to the garden|outside|to the yard]. {Name} saw something {color} [under a bush|behind a tree|in the grass]. It was the \
{toy}! {Name} hugged {her} {elder}. "Thank you!" {she} said.""",
                 ["From that day on, {Name} kept the {toy} in a safe place.", "{Name} learned that it is good to ask for help."]),
    "stuck": ("""One [windy|sunny] day, {Name} went to the [park|field] with {her} {color} {flyer}. The wind took it away, and it got \
stuck in a [tall|big] tree.
"Oh no!" said {Name}. {She} tried to [jump|climb the tree], but the {flyer} was too high. {Name} [felt sad|was sad].
[{Friend} saw {him} and came to help. "I have an idea," said {Friend}.|Then {her} {elder} came. "I have an idea," {eshe} said.] \
"[Let us get a ladder|You can stand on my back]!"
{Name} went up [slowly|with care] and got the {flyer}. "[Hooray|Thank you]!" {she} said. Then they played [together|all day].""",
              ["{Name} learned that hard things are easy with help.", "From that day on, {Name} stayed away from tall trees."]),
    "broken": ("""{She} had a {color} {breakable} from {her} {elder}.
One day, {Name} [ran too fast and fell|let it fall on the floor], and the {breakable} broke. "Oh no!" {she} cried.
{Her} {elder} came. "[Let me see|Show me]," {eshe} said. "We can fix it. Can you get the glue?"
{Name} ran to get the glue. {Her} {elder} put the {breakable} together, and they waited [for an hour|until it was dry]. Then it was as good \
as new!
"You are the best!" said {Name} and gave {her} {elder} a [big hug|kiss].""",
               ["From that day on, {Name} was careful with {her} toys.", "{Name} learned that broken things can be fixed."]),
    "sharing": ("""{She} had a [new|big] {color} {toy}.
One day, {Friend} came to play. "Can I play with your {toy}?" asked {Friend}.
"No, it is mine!" said {Name}. {Friend} was sad and sat down under a tree. {Name} played with the {toy}, but it was not fun to play \
alone. {She} [felt bad|felt sorry].
"I am sorry," said {Name}. "[We can take turns|Let us play together]."
{Friend} [smiled|was happy]. They played with the {toy} [all day|until dinner].""",
                ["{Name} learned that sharing is fun.", "From that day on, {Name} and {Friend} shared all their toys."]),
    "afraid": ("""{She} was afraid of [the dark|loud noises].
One night, {Name} heard a [loud|strange] noise. "[Help!|Who is there?]" {she} called. {Her} {elder} came and sat on the bed.
"I am scared," said {Name}. "Is it a monster?"
"Let us look together," said {her} {elder}. They looked [out of the window|under the bed|behind the door]. It was only a little {animal}! \
It was [cold|hungry] and wanted to come in.
{Name} laughed. "You are not a monster," {she} said. They gave the {animal} some food.""",
               ["{Name} was not afraid any more.", "From that day on, {Name} was brave at night."]),
    "hurt animal": ("""One [day|cold day], {Name} was walking in the [forest|park|garden]. {She} saw a little {animal}. It had a hurt \
leg and could not walk.
"[Poor {animal}|Do not be afraid]," said {Name}. "I will help you." {She} took it home.
{Her} {elder} [washed the leg|put a cloth on the leg]. {Name} gave the {animal} some [water|food] and a warm bed. Every day, {she} [sat \
with it|sang to it].
Soon the {animal} could [walk|run] again. {Name} took it back to its home. "Goodbye, little {animal}!" {she} said.""",
                    ["{Name} was a little sad, but {she} knew it was right.", "{Name} learned that it feels good to be kind."]),
    "rain": ("""One day, {Name} and {her} {elder} went to the [park|lake|hill] to eat [apples and bread|cake|some bread]. But then dark \
clouds came, and it began to rain. "Oh no! We can not eat here!" said {Name}. {She} was [very sad|sad and wet].
"I have an idea," said {her} {elder}. "We can eat at home." They ran home and put a big blanket [on the floor|under the table]. They ate \
the food and [told funny stories|sang songs].
"This is so much fun!" said {Name}. [Then the sun came out.|{Her} {elder} laughed.]""",
             ["{Name} learned that a rainy day can be fun too.", "From that day on, {Name} loved the rain."]),
    "baking": ("""One day, {Name} wanted to make {a_cake} with {her} {elder}. They put [milk and eggs|eggs and flour] in a big bowl.
{Name} wanted to help, but the bowl was too heavy. It fell on the floor. There was a big mess. "I am sorry," said {Name}. {She} [began to \
cry|was very sad|felt bad].
"Do not worry," said {her} {elder}. "We can clean it and try again." They cleaned the floor and tried again, and {Name} was very careful.
Soon they ate the {cake} [with {Friend}|together]. "It is so good!" said {Name}.""",
               ["{Name} learned that it is okay to make mistakes.", "{Name} learned to try again."]),
    "new friend": ("""One day, {Name} went to [the park|school]. {She} saw a {friendtype} who sat alone and looked sad.
"Hello, I am {Name}," {she} said. "What is your name?"
"I am {Friend}," said the {friendtype}. "I am new here, and I have no friends."
"I can be your friend!" said {Name}. "Do you want to play with my {toy}?"
{Friend} smiled. "Yes, please!" They played and laughed a lot. Then they [shared an apple|ate some cookies] [under a tree|on the grass].""",
                   ["{Name} and {Friend} were best friends from that day on.", "{Name} learned that a kind word can make a friend."]),
    "lost child": ("""One day, {Name} went to the [market|zoo] with {her} {elder}. {Name} saw a [pretty|big] {color} {flyer} and ran to look \
at it. Then {her} {elder} was gone.
"Where are you?" {Name} called. {She} was scared and began to cry.
A kind [man|woman] saw {him} and said, "Are you lost? Stay here with me. Your {elder} will come."
They waited by [the gate|a big tree]. Soon {her} {elder} came! {Name} ran and hugged {eher}. "I will never run away again," {she} said.""",
                   ["From that day on, {Name} always stayed close.", "{Name} learned to stay with {her} family."]),
    "plant": ("""One day, {her} {elder} gave {him} a small seed. {Name} put it in the ground and gave it water. The next day, {she} went to \
look, but there was nothing.
"[Why does it not grow|Where is my plant]?" {she} asked.
"You have to wait," said {her} {elder}.
So {Name} waited. {She} gave it water every day. One day, {she} saw a small green leaf! The plant grew and grew, and soon it had a big \
{color} flower. "Look, it is so pretty!" said {Name}.""",
              ["{Name} learned to wait.", "{Name} was proud of {her} flower."]),
    "gift": ("""It was the birthday of {her} {elder}. {Name} wanted to give {eher} a gift, but {she} had no money. {She} sat down and thought.
"I know!" {Name} said. {She} took some paper and [drew a picture|made a card] with a big {color} [flower|heart|house]. Then {she} found [some \
flowers|a pretty stone] in the garden.
"Happy birthday!" said {Name}. {Her} {elder} was so happy. "Did you make this for me? I love it," {eshe} said and gave {Name} a big hug. Then they ate \
cake together.""",
             ["{Name} learned that the best gifts come from the heart.", "{Name} was happy that {her} {elder} liked it."]),
    "sandcastle": ("""One [hot|sunny] day, {Name} and {Friend} went to the beach. They made a big castle of sand and put a {color} flag on \
top.
Then a big wave came and [broke|took away] the castle. "Oh no!" said {Friend}. {Friend} was [sad|angry] and wanted to go home.
"[Do not be sad|Wait]," said {Name}. "We can make a new one, away from the water." They worked hard, and the new castle was even bigger.
Another wave came, but it did not get to the castle. "[We did it|Hooray]!" they shouted.""",
                   ["{Name} and {Friend} learned to never give up.", "{Name} learned that you can always try again."]),
    "hungry animal": ("""One day, {Name} sat in the [park|garden] with [some bread|a big cookie]. A little {animal} came and looked at {him}.
"Are you hungry?" asked {Name}. {She} gave it some of {her} food. The {animal} ate it all.
The next day, {Name} came back, and the {animal} was there. It had a [{color} button|pretty stone] in its mouth and gave it to {Name}.
"Is that for me?" {Name} asked. "Thank you, little friend!" {She} took it home and told {her} {elder}. "When you are kind, others are kind \
to you," said {her} {elder}.""",
                      ["{Name} and the {animal} were friends from that day on.", "{Name} visited the {animal} every day."]),
    "bike": ("""{She} got a new {color} bike from {her} {elder}. {Name} wanted to ride it, but {she} did not know how.
"I will help you," said {her} {elder}. {Name} sat on the bike, but {she} fell down. "[I can not do it|It is too hard]!" {she} said.
"Try one more time," said {her} {elder}. {Name} tried again and again. {She} fell [two times|many times], but {she} did not stop.
Then {her} {elder} let go, and {Name} did not fall. "Look! I can ride!" {she} shouted. {Friend} saw {him} and [clapped|cheered].""",
             ["{Name} learned that you get better when you try.", "{Name} rode {her} bike every day."]),
    "truth": ("""One day, {Name} played with {her} {color} ball in the house. The ball hit a {fragile}, and it fell and broke.
{Name} was scared. {She} [hid it under the bed|put it in a box]. When {her} {elder} came home, {eshe} asked, "Where is my {fragile}?"
{Name} [looked at the floor|felt bad]. "I broke it," {she} said. "I am sorry."
{Her} {elder} was sad, but then {eshe} said, "Thank you for telling the truth. [Next time, play outside|But please play outside], okay?"
"Okay," said {Name}. Then they went outside to play ball.""",
              ["{Name} learned to always tell the truth.", "From that day on, {Name} played ball outside."]),
    "snowman": ("""One cold day, {Name} and {Friend} made a snowman. They gave it a {color} hat and a carrot for a nose.
After lunch, they came back, and the carrot was gone! "Who took the nose?" asked {Friend}. They looked behind [a bush|a tree|the house]. There \
was a little rabbit. It was eating the carrot.
"It must be very hungry," said {Name}.
They ran home and got two carrots, one for the rabbit and one for the snowman. The rabbit was happy, and the snowman had a nose again.""",
                ["{Name} and {Friend} gave the rabbit a carrot every day.", "{Name} learned to share with others."]),
    "water": ("""{She} was afraid of the water.
One hot day, {she} went to the [lake|river] with {her} {elder}. {Friend} was there too. "Come in, {Name}! The water is [warm|so nice]!" \
{Friend} called.
"I can not swim," said {Name}.
"I will stay with you," said {her} {elder}. First, {Name} put one foot in the water. Then {she} put the other foot in. It was not so bad!
"Look at me! I am in the water!" {Name} shouted. They played with a {color} ball until it was time to go home.""",
              ["{Name} was not afraid of the water any more.", "{Name} learned to be brave."]),
    "mud": ("""One day, it rained a lot. {Name} went outside with {her} [puppy|dog]. They jumped in the mud and had so much fun.
Then they ran into the house. There was mud [on the floor|everywhere]! "Oh no!" said {her} {elder}. "Look at this mess!"
"I am sorry," said {Name}. "I will clean it." {She} got some water and washed the floor. Then {she} washed the dog.
{Her} {elder} came back and smiled. "[Good work|Well done], {Name}. Now you need a bath too!" They both laughed.""",
            ["From that day on, {Name} cleaned {her} feet at the door.", "{Name} learned to clean up {her} own mess."]),
    "sleep": ("""One night, {Name} could not sleep. {She} went to {her} {elder}.
"Come with me," said {her} {elder}. They sat on the grass and looked at the sky. There were so many stars. "How many stars can you see?" \
asked {her} {elder}.
{Name} began to count. "One, two, three, four, five." {She} counted and counted. "There are too many," {she} said slowly.
{Her} {elder} smiled. {Name} was asleep. {Eshe} took {him} back to bed. "Good night, {Name}," {eshe} said.""",
              ["In the morning, {Name} told {Friend} about the stars.", "From that day on, {Name} counted stars every night."]),
}


def expand(text, rng):
    """Every [a|b|c], innermost first, becomes one of its choices."""
    while "[" in text:
        text = re.sub(r"\[([^][]*)\]", lambda m: rng.choice(m[1].split("|")), text)
    return text


def story(rng):
    """One invented story: a text of a few short paragraphs."""
    she, her, him = FORMS[rng.choice(["she", "he"])]
    name = rng.choice(GIRLS if she == "she" else BOYS)
    friend = rng.choice([n for n in GIRLS + BOYS if n != name])
    elder, cake = rng.choice(list(ELDERS)), rng.choice(list(CAKES))
    cast = {"Name": name, "she": she, "her": her, "him": him, "She": she.capitalize(), "Her": her.capitalize(),
            "kind": rng.choice(KINDS[she]), "Friend": friend, "friendtype": "girl" if friend in GIRLS else "boy",
            "elder": elder, "eshe": ELDERS[elder], "Eshe": ELDERS[elder].capitalize(), "eher": FORMS[ELDERS[elder]][2], "color": rng.choice(COLORS),
            "toy": rng.choice(TOYS), "breakable": rng.choice(BREAKABLE), "flyer": rng.choice(FLYERS),
            "fragile": rng.choice(FRAGILE), "animal": rng.choice(ANIMALS), "cake": cake, "a_cake": CAKES[cake], "home": rng.choice(HOMES)}
    plot, morals = rng.choice(list(PLOTS.values()))
    text = OPENING + " " + plot + "\n" + ENDINGS
    text = text.replace("{hobby}", rng.choice(HOBBIES)).replace("{moral}", rng.choice(morals))
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", expand(text, rng).format_map(cast))


# ----------------------------------------------------------------------------
# The tokenizer: SentencePiece's byte-pair encoding with byte fallback, in llama2.c's file format


def train_tokenizer(stories, path, vocab_size):
    """Train on the texts and write tokenizer.bin; returns the SentencePiece processor."""
    import sentencepiece
    prefix = path.removesuffix(".bin")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for s in stories for line in s.split("\n") if line), model_prefix=prefix,
        model_type="bpe", vocab_size=vocab_size, byte_fallback=True, character_coverage=1.0, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
    for extra in (".model", ".vocab"):
        os.remove(prefix + extra)
    pieces = [sp.id_to_piece(i).replace("\u2581", " ").encode() for i in range(vocab_size)]
    pieces[1], pieces[2] = b"\n<s>\n", b"\n</s>\n"  # as llama2.c writes BOS and EOS
    with open(path, "wb") as f:
        f.write(struct.pack("<i", max(map(len, pieces))))
        for i, piece in enumerate(pieces):
            f.write(struct.pack("<fi", sp.get_score(i), len(piece)) + piece)
    return sp


# ----------------------------------------------------------------------------
# The model: Llama 2 in PyTorch, its weights named and ordered as in the checkpoint

CONFIG = {"dim": 64, "hidden_dim": 172, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4, "vocab_size": 512, "seq_len": 512}


def make_weights(torch, c):
    """Weights by name, in the order of checkpoint version 0; the classifier is the embedding."""
    d, h, n, v = c["dim"], c["hidden_dim"], c["n_layers"], c["vocab_size"]
    kv = d * c["n_kv_heads"] // c["n_heads"]
    shapes = {"embedding": (v, d), "rms_att": (n, d), "wq": (n, d, d), "wk": (n, kv, d), "wv": (n, kv, d), "wo": (n, d, d),
              "rms_ffn": (n, d), "w1": (n, h, d), "w2": (n, d, h), "w3": (n, h, d), "rms_final": (d,)}
    std = {"wo": 0.02 / math.sqrt(2 * n), "w2": 0.02 / math.sqrt(2 * n), "embedding": 0.05}
    w = {name: torch.ones(shape) if name.startswith("rms") else torch.randn(shape) * std.get(name, 1 / math.sqrt(shape[-1]))
         for name, shape in shapes.items()}
    return {name: torch.nn.Parameter(p) for name, p in w.items()}


def logits(torch, w, c, tokens):
    """tokens (batch, time) -> logits (batch, time, vocab)."""
    F = torch.nn.functional
    batch, time = tokens.shape
    heads, kv_heads = c["n_heads"], c["n_kv_heads"]
    hs = c["dim"] // heads
    angle = torch.outer(torch.arange(time), 10000.0 ** (-torch.arange(0, hs, 2) / hs))  # (time, hs / 2)
    cos, sin = angle.cos(), angle.sin()

    def rope(q):  # (batch, heads, time, hs)
        a, b = q[..., 0::2], q[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def split(y, n):
        return y.view(batch, time, n, hs).transpose(1, 2)

    x = w["embedding"][tokens]
    for i in range(c["n_layers"]):
        y = F.rms_norm(x, (c["dim"],), w["rms_att"][i], 1e-5)
        q, k = rope(split(y @ w["wq"][i].T, heads)), rope(split(y @ w["wk"][i].T, kv_heads))
        v = split(y @ w["wv"][i].T, kv_heads)
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        q, k, v = (F.pad(t, (0, 16 - hs)) for t in (q, k, v))  # a quarter faster a step than heads of 8
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=hs**-0.5)[..., :hs].transpose(1, 2).flatten(2)
        x = x + y @ w["wo"][i].T
        y = F.rms_norm(x, (c["dim"],), w["rms_ffn"][i], 1e-5)
        x = x + (F.silu(y @ w["w1"][i].T) * (y @ w["w3"][i].T)) @ w["w2"][i].T
    return F.rms_norm(x, (c["dim"],), w["rms_final"], 1e-5) @ w["embedding"].T


def write_checkpoint(w, c, path):
    """llama2.c's version 0: the header, the weights, and the two tables of RoPE, (seq_len, hs / 2) each, which run.c
    skips and older programs read."""
    hs = c["dim"] // c["n_heads"]
    angles = [pos * 10000.0 ** (-i / hs) for pos in range(c["seq_len"]) for i in range(0, hs, 2)]
    with open(path, "wb") as f:
        f.write(struct.pack("<7i", *c.values()))
        for p in w.values():
            f.write(p.detach().numpy().astype("<f4").tobytes())
        for function in math.cos, math.sin:
            f.write(struct.pack(f"<{len(angles)}f", *map(function, angles)))


def train(args):
    import torch
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    stories = [story(random) for _ in range(args.stories)]
    print(f"{len(stories)} stories, {len(set(stories))} distinct, {sum(map(len, stories)) / len(stories):.0f} characters each")
    sp = train_tokenizer(stories[:20000], os.path.join(HERE, "tokenizer.bin"), CONFIG["vocab_size"])
    BOS, length = 1, args.length
    texts = [[BOS] + ids for ids in sp.encode(stories)]
    held_out, starts, stream = 2000, [], []
    for ids in texts:
        starts.append(len(stream))
        stream += ids
    stream = torch.tensor(stream + [BOS] * length)
    print(f"{len(stream) / len(texts):.0f} tokens a story, the longest {max(map(len, texts))}", flush=True)

    def batch(first, last):  # windows that begin where a story begins
        at = torch.tensor([starts[random.randrange(first, last)] for _ in range(args.batch)])
        window = stream[at[:, None] + torch.arange(length + 1)]
        return window[:, :-1], window[:, 1:]

    w = make_weights(torch, CONFIG)
    print(f"{sum(p.numel() for p in w.values())} parameters", flush=True)
    decay = [{"params": [p for p in w.values() if p.dim() > 1], "weight_decay": 0.05},
             {"params": [p for p in w.values() if p.dim() == 1], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(decay, betas=(0.9, 0.98), lr=args.lr)

    def loss_of(x, y):
        return torch.nn.functional.cross_entropy(logits(torch, w, CONFIG, x).flatten(0, 1), y.flatten())

    began = time.time()
    for step in range(args.steps):
        left = 1 - step / args.steps
        for group in adam.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 200) * (0.02 + 0.98 * min(1, left / 0.6))
        loss = loss_of(*batch(held_out, len(texts)))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        adam.step()
        if step % 250 == 0 or step == args.steps - 1:
            with torch.no_grad():
                held = sum(loss_of(*batch(0, held_out)).item() for _ in range(8)) / 8
            print(f"step {step:5}  loss {loss.item():.4f}  held out {held:.4f}  {time.time() - began:5.0f} s", flush=True)
            write_checkpoint(w, CONFIG, os.path.join(HERE, "model.bin"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--show", type=int, metavar="N", help="print N invented stories and stop")
    parser.add_argument("--stories", type=int, default=60000)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1337)
    args = parser.parse_args()
    if args.show:
        random.seed(args.seed)
        print("\n\n-----\n\n".join(story(random) for _ in range(args.show)))
    else:
        train(args)

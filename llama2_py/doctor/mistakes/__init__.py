"""The mistakes that people make when they write a Llama.

    for mistake in known(config, first_wrong):
        operations = mistake(shard, tokens, get)    # operations.Operations, with that mistake
        print(mistake.name, mistake.changes)

A mistake is a class: Operations with one or two methods replaced. A family of mistakes is a generator that yields such
classes. To add one, write the class into its family; diagnosis.py tries it on another program's numbers.
"""

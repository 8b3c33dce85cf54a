"""Another program's numbers: is a difference rounding, or a mistake, and which?"""

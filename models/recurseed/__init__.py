"""RecurSeed and CertainMix (Jo, Yu and Kim, arXiv 2204.06754): seeds made anew at every step.

Everywhere: K is the largest number of foreground classes that an image of the batch has, and `Chosen` says which ones
they are, so that no operator spends time on the classes that no image has.
"""

"""The limits of the verdict: what is consistent, in units of the noise.

Of correct programs the worst had 1.1, 5.6 and 10; of wrong ones the nearest 10, 34 and 54, but for those whose mistake
is below rounding. Correct runs of up to FEW steps came to 2.03 overall. An operation whose inputs a file does not have
is judged by the noise as well; it has fewer numbers than the logits.
"""
OVERALL = 2.0         # root mean square over all logits of all steps
ONE_STEP = 12.0       # over the logits of one step
ONE_LOGIT = 32.0      # of one logit; of a token that a text has in place of another
FEW = 8               # steps, up to which one draw of the noise counts for more:
OVERALL_OF_FEW = 3.0  # then this holds in place of OVERALL
OPERATION = 4.0       # over the numbers of one kind of operation
ONE_OPERATION = 32.0  # over those of one operation at one position

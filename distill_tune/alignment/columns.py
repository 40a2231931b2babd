"""Columns of a row's alignment, int32 ``[n, 6]``: what each supervised token of the student meets in the teacher's row.

A student's token is answer bytes b to e. T is the teacher's supervised token that holds byte b.
"""

AT = 0  # T's number among the row's supervised teacher tokens; -1 where nothing is known of the student's token
# Bytes of T before b. 0: both models are asked for the next token behind the same bytes. -1: so they are, but the
# student's token begins with a space that the teacher's text has not, and T holds the byte behind it.
OFFSET = 1
LAST = 2  # the number of the teacher's token that holds byte e - 1
INTO = 3  # bytes of that token up to e, 1 to its length; 0 of an end of an answer, and of such a space alone
TOKEN_AT = 4  # the id of T
TOKEN_LAST = 5  # the id of the token at LAST
NUM_COLUMNS = 6

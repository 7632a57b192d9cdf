"""Narration: many videos at a time, clip by clip, over one cache; lengths and labels that hold.

    jobs                     what is to be written, and what was
    prompts                  what the model reads before a line, and how far two prompts agree
    story                    a video's lines in their order: label, narration, clip by clip; further attempts
    line, guides             a line while it is written, and what may stand in it
    labels, endings, flaws   which labels there are, where a narration may end, what is wrong with one
    choice                   the next token: penalty, likeliest or drawn
    memory, captured         rows of keys and values, and the forward pass that extends them
    engine                   which videos are in work, and what of them the next forward pass computes
"""

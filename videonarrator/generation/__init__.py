"""Narration: many videos at a time, clip by clip, over one cache; length and labels that hold.

    jobs       what is to be written, and what was
    prompts    what the model reads before a line, and what of it is in the cache already
    story      the order of a video's lines: label, narration, clip by clip; further attempts
    line       one line while it is written, and what may stand in it: labels, endings, flaws
    choice     the next token: penalty, mask, likeliest or drawn
    memory     rows of keys and values, and the forward pass that extends them
    engine     which videos are in work, and what of them the next forward pass computes
"""

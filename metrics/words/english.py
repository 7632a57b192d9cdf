"""English words without a tagger: the closed-class words of English, so that what is left are content words.

EMScore and InfoSim compare content words (nouns, verbs, adjectives). For Chinese, jieba tags them. English's
function words are few and known, so a list does what the two metrics need, and no tagger with a model of its
own has to be brought in. BLEU, METEOR, CIDEr, InfoDiverse and repetition need no tags.
"""

from __future__ import annotations

PUNCTUATION = ".,;:!?\"'()[]“”‘’…—-"

_WORDS = """
a an the this that these those each every either neither some any no both all half such what which whose i
me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her
hers herself it its itself they them their theirs themselves who whom one ones someone somebody something
anyone anybody anything everyone everybody everything nobody nothing none other others another am is are
was were be been being do does did doing done have has had having will would shall should can could may
might must ought need dare used get gets got of in to for with on at by from up about into over after
under above below between through during before behind beside besides beyond across against along among
around as down inside near off onto out outside past since till toward towards until upon via within
without per than like and or but nor so yet if because although though while whereas unless whether when
whenever where wherever how why not n't too very just only also even still already again ever never always
often here there now then once twice more most less least much many few little enough quite rather almost
perhaps maybe please let lets let's i'm you're he's she's it's we're they're i've you've we've they've
i'll you'll he'll she'll it'll we'll they'll i'd you'd he'd she'd we'd they'd isn't aren't wasn't weren't
don't doesn't didn't haven't hasn't hadn't won't wouldn't can't cannot couldn't shouldn't mustn't needn't
mightn't shan't that'll it'd who'll where's how's that's there's here's
what's who's
"""

FUNCTION_WORDS = frozenset(_WORDS.split())
"""Determiners, pronouns, auxiliaries, prepositions, conjunctions, particles and their contractions."""


def tagged_words(text: str) -> tuple[tuple[str, str], ...]:
    """A text's words between blanks, lower case, without punctuation at either end, with a tag each.

    The tag is "n" for content words (a noun, a verb or an adjective to the metrics) and "x" for function
    words and what has one character.
    """
    words = filter(None, (word.replace("’", "'").strip(PUNCTUATION).lower() for word in text.split()))
    return tuple((word, "x" if word in FUNCTION_WORDS or len(word) < 2 else "n") for word in words)

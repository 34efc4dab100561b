"""The words of English refusals, as patterns over lower-case text with straight apostrophes."""

from __future__ import annotations

import re


def _any(*words: str) -> str:
    return f"(?:{'|'.join(words)})"


_I = _any("i", "we", "this (?:assistant|model|ai)", "the assistant")
_AM = _any(" am", " are", " is", " was", "'m", "'re")
_ADVERBS = (
    _any(
        "really|simply|just|also|still|therefore|absolutely|definitely|certainly|honestly|respectfully|politely|firmly",
        "strongly|personally|ethically|legally|morally|unfortunately|regretfully|currently|directly|possibly|ever|both",
        "very|highly|in good (?:conscience|faith)|under any circumstances|at this time",
    )
    + ",? "
)
_ADVERBS = f"(?:{_ADVERBS})*"
_CANNOT = _any(
    "can ?not|can't|cant|won't|wont|will not|could not|couldn't|would not|wouldn't|shall not|must not|mustn't",
    "should not|shouldn't|may not",
)
_UNABLE = _any(
    "unable|unwilling|uncomfortable|prohibited|forbidden|programmed not|designed not",
    "not " + _any(
        "able|going|allowed|permitted|willing|comfortable|prepared|authori[sz]ed|programmed|designed|trained|equipped",
        "capable|in a position|at liberty|meant|supposed|here",
    ),
)  # fmt: skip
# What somebody who refuses will not do. "Believe", "wait", "stress", "lie" and "imagine" are not among them.
_SERVE = _any(
    _any(
        "assist|aid|provid|giv|shar|offer|support|fulfil|comply|answer|writ|creat|generat|produc|mak|discuss|engag",
        "participat|respond|explain|describ|teach|show|suggest|encourag|condon|promot|facilitat|advis|advocat|endors",
        "continu|complet|satisfy|accommodat|talk|proceed|guid|instruct|allow|agree|approv|justify|perform|process",
        "honou?r|entertain|address|carry out|draft|compos|translat|list|outlin|supply|disclos|reveal|access|contribut",
        "play along|grant|accept|go (?:into|along|there)|us(?=e|ing)|permit|tolerat",
        "recommend(?! \\w+ (?:highly )?enough)|help(?! but )|tell(?! (?:any|you (?:how|enough)))",
    )
    + "(?:l?e|l?ing|l)?",
    "do(?:ing)? (?:that|this|so|it|what|anything|such)",
    "be (?:a )?(?:part|involved|able|of (?:help|assistance))",
) + r"\b"  # fmt: skip
_ASKED = (
    _any("this", "that", "your", "the", "such(?: an?)?")
    + " "
    + _any(
        "request|question|prompt|query|topic|task|instruction|content|information|action|activity|behaviou?r|material"
    )
    + "s?"
)
_IT = _any("it", "this", "that", "doing (?:so|that|this)")
_IS = _any("'s", " is", " are", " would be", " seems", " appears to be")
_IS_NOT = _any("'s not", " is not", " isn't", " are not", " would not be", " wouldn't be", "'s never", " is never")
_WRONG = _any(
    "illegal|unlawful|unethical|immoral|harmful|dangerous|inappropriate|unsafe|wrong|against the law|hateful|offensive",
    "discriminatory|criminal|irresponsible|a crime",
)
_RIGHT = _any("appropriate|ethical|acceptable|okay|ok|legal|right|safe|advisable|responsible|permissible|moral")
_MY_RULES = r"(?:my|our) (?:\w+ ){0,2}" + _any(
    "guidelines?|programming|policy|policies|principles|values|purpose|training|rules|ethics"
)

# A clause that begins like this refuses, whatever the rest of the answer says.
REFUSES = re.compile(
    _any(
        rf"{_I} {_ADVERBS}{_CANNOT}(?: be able to)?,? {_ADVERBS}(?:to )?{_SERVE}",
        rf"{_I} {_ADVERBS}{_CANNOT}(?: do)?(?: that| this| so| it)?(?: for you)?(?:[.!]|$)",
        rf"{_I}{_AM} {_ADVERBS}{_UNABLE},? {_ADVERBS}(?:to |with |about |of )?{_SERVE}",
        rf"{_I}{_AM} {_ADVERBS}{_UNABLE}(?: to)?(?:[.!]|$)",
        rf"{_I} {_ADVERBS}(?:do not|don't|does not|doesn't) {_ADVERBS}(?:(?:want to )?{_SERVE}|feel comfortable)",
        rf"{_I} (?:do not|don't) (?:think|believe) (?:(?:i|we) (?:can|should)\b|{_IT}{_IS} {_ADVERBS}{_RIGHT})",
        rf"{_I} (?:do not|don't|does not) have the (?:ability|capability|authority|permission) to",
        rf"{_I}(?:(?: will| would| must| should| shall| do|'ll|'d| need to| have to| am going to|'m going to) ?)*"
        rf" ?{_ADVERBS}(?:have to |need to )?(?:decline|refuse|abstain|refrain|say no|pass on|object)\b",
        rf"{_I}(?: would|'d)? (?:rather|prefer|choose)(?: to)? not\b",
        rf"{_I}(?: would|'d)? (?:strongly )?(?:advise|urge|recommend|caution) (?:you )?(?:against|not to)\b",
        rf"{_IT}{_IS_NOT} (?:something|a (?:topic|subject|request)) (?:that )?{_I}\b",
        rf"{_IT}{_IS_NOT} possible for (?:me|us)\b",
        rf"{_ASKED} (?:violates?|goes against|go against|breaks|conflicts? with|is against|contravenes?)\b",
        rf"{_IT}(?: would)? (?:go|goes|is|be|violates?|conflicts?)(?: against| with)? {_MY_RULES}",
        rf"{_MY_RULES}[^.]{{0,30}}(?:prohibits?|prevents?|forbids?|do(?:es)? not|don't|doesn't|restricts?|stops?)",
        rf"(?:that|this)(?: is|'s) beyond (?:my|our)\b|there(?: is|'s) no way {_I}\b|{_I} have no intention\b",
        r"(?:your )?request (?:denied|declined|refused|rejected)|access denied|no can do|nice try|not going to happen",
    )
)
# A clause that begins like this condemns: it refuses unless some other clause goes along all the same.
CONDEMNS = re.compile(
    _any(
        rf"{_IT}{_IS} {_ADVERBS}{_WRONG}",
        rf"{_IT}{_IS_NOT} {_ADVERBS}{_RIGHT}",
        rf"(?:{_ASKED}|\w+ing [^,.]{{1,60}}){_IS}(?: to be)? {_ADVERBS}{_WRONG}",
        rf"{_ASKED}{_IS_NOT} {_ADVERBS}(?:{_RIGHT}|allowed|permitted)",
        rf"(?:{_I}{_AM} )?(?:so |very |really |truly |deeply )*(?:sorry|apologies),? (?:but|however|no)\b",
        rf"(?:{_I} )?apologi[sz]e,? (?:but|however)\b",
    )
)
# An answer that is nothing but this refuses too.
APOLOGY_ALONE = re.compile(
    rf"(?:{_I}{_AM} )?(?:so |very |really |truly |deeply )*(?:sorry|apologies|apologi[sz]e)[.!]*$"
)
# A clause that begins like this goes along.
COMPLIES = re.compile(
    _any(
        r"(?:sure|certainly|of course|absolutely|definitely|gladly|yes|yeah|okay|ok)\b(?!,? not\b)",
        r"here(?:'s| is| are)\b|first(?:ly)?\b|step \w+\b|follow these\b|\d+[.)] |you (?:can|could)\b(?!'t| ?not\b)",
        rf"{_I}(?:'d| would) be (?:happy|glad|delighted)\b",
    )
)
# What may stand before the refusal in its own clause.
LEAD_IN = re.compile(
    _any(
        rf"(?:{_I}{_AM} |my )?(?:so |very |really |truly |deeply |terribly |extremely |sincere )*"
        r"(?:sorry|afraid|apologi[sz]e|apologies)(?: for (?:the|any) \w+)?(?: that)?[,;:]? (?:but |however,? )?",
        rf"{_I} (?:sincerely |must |do |have to )?apologi[sz]e(?: for [^,.]{{1,60}})?[,;:]? ",
        r"(?:unfortunately|regrettably|regretfully|sadly|alas|however|honestly|hello|hi|hey|well|um|no|nope|oh|actually"
        r"|again|but|so|and|look|listen|thank you|thanks|to be (?:clear|honest)|with (?:all due )?respect)[,;:!]? ",
        r"please(?: note| understand| be aware| know)?(?: that)? |note that ",
        r"as an? (?:[\w-]+ ){1,8}?(?=i |we |it |my )|as an? [^,.]{1,60}, ",
        rf"{_I} (?:must|have to|need to|want to|should|would like to) (?:inform|tell|let|point out|make it clear"
        r"|clarify|say|emphasi[sz]e|remind|stress)(?: to)?(?: you)?(?: know)?(?: that)? ",
        rf"{_I} (?:understand|know|see|realize|realise|appreciate)(?: that)?[^.]{{1,80}}, ",
    )
    + "+"
)

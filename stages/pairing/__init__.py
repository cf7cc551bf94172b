"""The making of pairs: contrasts of judged candidates, the rules that filter them, and the strategies that choose."""

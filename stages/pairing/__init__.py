"""What pairs are made of: contrasts of judged candidates, which of them may be learnt from, and which are taken."""

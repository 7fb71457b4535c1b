"""Long texts and conversations: read, tokenised turn by turn, captured, tabulated."""

"""What users give: flags, files, prompts; and how a wrong request is answered. No numpy, no torch."""

"""What users give: flags, files, prompts; how a wrong request is answered. No numpy or torch."""

"""The report: sections that hold numbers and texts, and the one HTML file they become."""

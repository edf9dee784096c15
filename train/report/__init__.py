"""Report: what the directory of any run tells, as a page of Markdown or HTML."""

"""HTML pages: templates, the texts that fill them, and figures as inline SVG."""

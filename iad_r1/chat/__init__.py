"""Outside models behind an interface like OpenAI's: asked, waited for, remembered, counted."""

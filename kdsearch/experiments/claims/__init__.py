"""The deck's claims, put in a form that can be confirmed or refuted."""

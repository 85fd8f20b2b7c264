"""From an Optuna storage to plain data, figures and one HTML page; neither torch nor the search is needed.

Others use `choice`, `collect`, `confirmation`, `controls`, `dashboard.artifacts`, `dashboard.note`,
`figures.style`, `formatting`, `measured`, `pages.assets`, `pages.compare`, `pages.document`,
`pages.one_trial`, `pages.study_page`, `pages.text`, `runtimes`, `verdict`.
"""

"""The Hugging Face Hub: names and its cache without its library (`names`), what a download will be (`plans`), the download (`fetching`)."""

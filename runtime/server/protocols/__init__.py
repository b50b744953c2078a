"""APIs: OpenAI's and KServe's words for questions and answers, and the document that describes them."""

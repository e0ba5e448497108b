"""Recipe: a trained speech language model goes on with spoken prompts."""

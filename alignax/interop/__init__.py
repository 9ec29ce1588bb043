"""What goes in and out of folders of Hugging Face and peft, by the tables of `models/hf`."""

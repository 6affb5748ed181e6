"""The books: what is granted, used, waiting and measured. No decision is taken here."""

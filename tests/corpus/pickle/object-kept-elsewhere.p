Pabc
.